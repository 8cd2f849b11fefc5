"""Export: deployable files, made, guarded and checked."""
