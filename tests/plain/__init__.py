"""Independent plain forms of what the house computes: numpy float64 loops written from the authors' formulas.

They take parameters by name and share no line with the rooms that they judge. One row, one document at a time; letters
as in the house: T tokens, D width, N heads of width H, K key/value heads, F hidden width, V vocabulary.
"""
