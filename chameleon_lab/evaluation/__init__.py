"""Judging what was trained.

- `scenes`, `card`: scores on held-out prompts, pictures read by the checker; a model card of them
- `infilling`: scores of filled blanks, on held-out scenes
- `retrieval`: scores of flags drawn with and without the document that explains them
- `rewards`: what reward taught, judged by the reward's checker and by another judge
- `metrics`, `distances`: image tokenizers on a reference set, every value with its protocol
- `comparison`: quantizers on equal terms
- `stability`: how the stability presets end, and when alarms sound; `competition`: one of them, both modalities or one
- `additions`: a person's own fixes, corpora, rules and quantizers; `intervals`: of means and of shares
- `judgement`: of what people judged: win rates, agreement, Krippendorff's alpha, Bradley-Terry strengths
"""
