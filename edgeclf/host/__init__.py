"""Everything that makes a deployable file: the only place that imports TensorFlow, scikit-learn or matplotlib."""
