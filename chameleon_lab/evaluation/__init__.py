"""Judging what was trained.

- `scenes`, `card`: scores on held-out prompts, pictures read by the checker; a model card of them
- `results`: values with their protocols and items' scores; two models' difference by paired bootstrap
- `own_prompts`: prompts of one's own with checks of the replies
- `benchmarks`: those of Chameleon's paper as data; `answers`, `captions`: their metrics; `prompting`: how they ask
- `harness`, `lmms`: models of the lab in EleutherAI's harness and in lmms-eval; `geneval`: drawings for GenEval
- `infilling`: scores of filled blanks, on held-out scenes
- `instructions`, `transfer`: scores of each task of instructions; which task helps which
- `retrieval`: scores of flags drawn with and without the document that explains them
- `ablation`: what documents, guidance and CD-K change, at equal passes; `coco`: FID of pictures drawn for captions
- `forgetting`: what a fine-tuning teaches, and what the model forgets of what it could do
- `rewards`: what reward taught, judged by the reward's checker and by another judge
- `metrics`, `distances`: image tokenizers on a reference set, every value with its protocol
- `comparison`: quantizers on equal terms
- `stability`: how the stability presets end, and when alarms sound; `competition`: one of them, both modalities or one
- `balance`: what a mixture holds of each modality, and how often a model then draws, asked and not asked
- `additions`: a person's own fixes, corpora, rules and quantizers; `intervals`: of means and of shares
- `judgement`: of what people judged: win rates, agreement, Krippendorff's alpha, Bradley-Terry strengths
- `verdicts`: what the judgements of a study come to
"""
