"""Operations on boxes, anchors and masks, matching, and RoIAlign."""
