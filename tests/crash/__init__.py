"""The crash campaign: real processes, killed at random moments, and the providers' books after it.

Reading order: `campaign` (what is killed when), `blows` (how), `jobs` (what is alive meanwhile),
`books` (what must be true of it in the end).
"""
