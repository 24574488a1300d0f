"""Datasets made from pictures: folders and zips packed into a parquet, and examples added one by one.

folder        names and contents of the pictures in a folder
zips          those of the pictures in a zip, which is never unpacked to the disk
pairs         which pictures belong together, by their names
captions      the caption of each pair, from texts beside the pictures or a table
pack          the parquet made of them
examples      a dataset to which examples are added one by one

Knows no torch, no model and no training.
"""
