"""`xlstm version`: what runs here, and what would be picked."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Sequence
from importlib import metadata
from typing import Any

from xlstm_jax.cli import lacks_device, no_device
from xlstm_jax.cli.parser import Parser
from xlstm_jax.machine.environment import installed_version

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint")
_REQUIREMENT = re.compile(
    r"""^(?P<name>[\w.-]+)(\[(?P<inner>[\w.-]+)\])?.*;.*\bextra\s*==\s*["'](?P<extra>[^"']+)["']"""
)


def main(argv: Sequence[str]) -> int:
    """Run `xlstm version ARGV`; returns the exit code."""
    parser = Parser(prog="xlstm version", description="Versions, devices and what would be picked.")
    parser.add_argument("--json", action="store_true", help="print JSON")
    arguments = parser.parse_args(argv)
    facts = version_facts()
    print(json.dumps(facts, indent=2) if arguments.json else _as_text(facts))
    return 0


def version_facts() -> dict[str, Any]:
    """Versions, devices, the implementation of each cell that would be picked, and which extras are installed."""
    versions = {"xlstm-jax": installed_version("xlstm-jax"), "python": platform.python_version()}
    facts: dict[str, Any] = {"versions": versions | {name: installed_version(name) for name in PACKAGES}}
    try:
        import jax

        facts["devices"] = [{"platform": d.platform, "kind": d.device_kind, "id": d.id} for d in jax.devices()]
        from xlstm_jax.kernels import mlstm, slstm

        for cell, (name, reason) in (("mlstm", mlstm.pick_implementation()), ("slstm", slstm.pick_implementation())):
            facts[cell] = {"implementation": name, "reason": reason}
    except Exception as error:
        # Who asks for versions often does so because JAX does not start, in whatever way: that is an answer too.
        what = no_device(error) if lacks_device(error) else str(error).strip().partition("\n")[0]
        facts["problem"] = what or f"JAX does not start ({type(error).__name__})"
    return facts | {"extras": installed_extras()}


def installed_extras(distribution: str = "xlstm-jax") -> dict[str, dict[str, bool]]:
    """Each optional extra with its packages, and whether these are installed; of an extra of theirs, its packages."""
    try:
        requirements = metadata.requires(distribution) or []
    except metadata.PackageNotFoundError:
        return {}
    extras: dict[str, dict[str, bool]] = {}
    for requirement in requirements:
        if match := _REQUIREMENT.match(requirement):
            found = {match["name"]: installed_version(match["name"]) is not None}
            inner = installed_extras(match["name"]).get(match["inner"], {}) if match["inner"] else {}
            extras.setdefault(match["extra"], {}).update(found | inner)
    return extras


def _as_text(facts: dict[str, Any]) -> str:
    lines = [(name, version or "not installed") for name, version in facts["versions"].items()]
    if "problem" in facts:
        lines.append(("devices", f"none can be used: {facts['problem']}"))
    else:
        kinds: dict[str, int] = {}
        for device in facts["devices"]:
            what = (
                f"{device['platform']} ({device['kind']})" if device["kind"] != device["platform"] else device["kind"]
            )
            kinds[what] = kinds.get(what, 0) + 1
        lines.append(("devices", ", ".join(f"{count} x {what}" for what, count in kinds.items())))
        for cell in ("mlstm", "slstm"):
            lines.append((cell, f"{facts[cell]['implementation']}: {facts[cell]['reason']}"))
    for extra, packages in facts["extras"].items():
        lacking = [name for name, there in packages.items() if not there]
        lines.append((f"extra {extra}", f"not installed: {', '.join(lacking)}" if lacking else "installed"))
    width = max(len(name) for name, _ in lines)
    return "\n".join(f"{name:{width}}  {text}" for name, text in lines)
