"""SEDflow core: galaxy model, flow, artifact, inference."""
