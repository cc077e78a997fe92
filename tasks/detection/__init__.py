"""Objects in pictures: their boxes, classes and masks, by Mask R-CNN or a DETR-style decoder."""
