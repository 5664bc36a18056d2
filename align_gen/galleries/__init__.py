"""Pictures on disk, the scores of them, and what changed between two sets of them.

gallery, media, prompts, sampling: a folder of pictures with metadata, and how it is made.
sources, items, shards: whatever else can be scored, as a stream of pictures.
scoring, workers, reading, chunks: pictures in, scores out, in threads and across kills.
table, columns, folders: scores in memory and as Parquet, and where their pictures may lie.
hpdv2: a published benchmark's table of scores.
comparison, intervals, verdicts, diversity: what changed between two galleries.
pairs, mining: preference pairs out of scores.
"""
