"""What an experiment needs before it runs: parameters, operations, memory, communication."""
