"""Functions of boxes, anchors, masks, matching and RoIAlign."""
