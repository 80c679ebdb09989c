"""Many devices and processes: meshes, shardings, kernels under a mesh, launchers. The one place that knows devices."""
