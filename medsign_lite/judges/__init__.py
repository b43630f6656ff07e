"""Independent judges of images: classifiers and a segmenter that never see the generator."""
