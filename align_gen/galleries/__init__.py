"""Pictures on disk, the scores of them, and what changed between two sets of them.

gallery, media, prompts, sampling: a folder of pictures with metadata, and how it is made.
sources, items, shards: whatever else can be scored, as a stream of pictures.
scoring, workers, table, columns, hpdv2: scores, in memory and as Parquet.
comparison, intervals, diversity: what changed between two galleries.
pairs, mining: preference pairs out of scores.
"""
