"""Pictures on disk, the scores of them, and what changed between two sets of them.

gallery, layout, media: a folder of pictures with metadata, and which folders are ours to replace.
prompts, csv_rows, planning, sampling: what is drawn, and how it gets there.
sources, items, shards: whatever else can be scored, as a stream of pictures.
scoring, workers, reading, chunks: pictures in, scores out, in threads and across kills.
earlier, summary: what earlier calls left, and what the user is told.
table, columns, versions, folders: scores in memory, and where their pictures may lie.
parquet_files, scores_file, signing: files of ours, by their mark, checksums and signature.
hpdv2: a published benchmark's table of scores.
comparison, intervals, verdicts, diversity: what changed between two galleries.
pairs, mining: preference pairs out of scores.
"""
