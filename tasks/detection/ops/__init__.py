"""Boxes, anchors, instance masks, matching and RoIAlign as pure functions."""
