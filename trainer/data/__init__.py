"""Datasets: parquets of control images, captions and target images, checked and read by row.

dataset       opening a dataset; rows, shards and the fingerprint
dataset_files the files of a dataset: one, a folder, a pattern
hub_files     datasets on the Hugging Face hub, downloaded into its cache
row_blocks    blocks of rows read from these files
parquet_rows  the rows of one parquet
arrow_rows    the rows of one Arrow file, as `datasets` saves them
file_state    whether a file that is read in parts is still the same
cells         cells of columns of any type
row_edits     left-out rows and edited captions, kept beside the files
edited_blocks blocks of rows with these edits
row_warnings  warnings about single rows, for a person who looks through them
pages         how much of a row group is read at once
footer        what a parquet's footer says of its column chunks
thrift        structs in parquet files that pyarrow does not show
parquet       opening parquet files; the check of column names and types
validation    the check of every row before training
cell_checks   its part that looks at every cell
findings      what that check found, as a report with warnings
report        results of that check
columns       a guess at the columns of an unknown parquet
column_words  words in names that the guess and the check go by
image_refs    references to images and reading their bytes
images        decoding to RGB
image_headers what an encoded image takes to decode
pillow        Pillow without its process-wide switches
digests       digests of image files, which identify a dataset
downloads     images behind URLs
hosts         which servers may be asked for images
resize        arithmetic of image sizes
load_request  a request read together with its parquet

Knows no torch and no model.
"""
