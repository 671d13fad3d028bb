"""Looks into a trained model: of features and predictions alone, of images and of scenes."""
