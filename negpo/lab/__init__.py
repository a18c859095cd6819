"""Embedded worlds and small models made from nothing: what every main job runs on when nothing else is given."""

from negpo.lab.build import LabPaths, build_lab

__all__ = ["LabPaths", "build_lab"]
