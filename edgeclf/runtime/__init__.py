"""Everything that runs a deployable file: the same code on the device and on the host, without TensorFlow."""
