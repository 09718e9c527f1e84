"""Export of trained classifiers as SavedModels for TensorFlow Serving."""

from der_tf.export.savedmodel import export as export

__all__ = ["export"]
