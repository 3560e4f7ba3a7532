"""Annotation formats to write, one file each. A new format is a file and its entry in WRITERS.

A writer has NAME, for --to; TITLE; BY_STEM, whether annotation files are named after the image
without its suffix; and two functions:

image_path(split, name)              where an image belongs, relative to the folder of the set
write(folder, splits, lost, wrap)    writes the annotations of all splits into an existing folder

`splits` maps train, val, ... to checked COCO content, all with the same categories in the order of
their ids. What a format cannot hold is noted in `lost`. `wrap` goes around the images of a split
(a progress bar).
"""

from __future__ import annotations

from data.writers import coco, cvat, ids, label_studio, labelme, masks, yolo

WRITERS = {one.NAME: one for one in (coco, yolo, labelme, cvat, masks, ids, label_studio)}
