"""Training: the only place that knows Lightning.

- `budget`, `modules`, `data`: how long, what a step is, and what it is given
- `trainable`: what a `Run` asks of anything that trains
- `folder`, `loop`, `control`: a run on disk, one trainer's work, and orders between two steps
- `beginning`, `fine_tuning`: the weights that a training begins from; what it did to them, before and after
- `alignment`: a model made to answer, on conversations, by the paper's recipe
- `compilation`: `torch.compile` for the blocks of a transformer in training
- `run`: `Run`, the only executor; in the background, its orders and its forks
- `trainer_arguments`: which arguments of Lightning's `Trainer` a run takes, and why it refuses the others
- `launch`, `source`: a run in processes of its own, here or elsewhere; an experiment as the Python that makes it
- `sharding`, `sharded_files`, `recomputation`: weights in parts (FSDP2), their checkpoints, blocks made again
- `consolidation`: a checkpoint, whole or in parts, made a model in any format
- `loggers`: a run's records sent to a logger of Lightning's
- `text_experiments`, `image_experiments`, `experiments`: named trainings of tokenizers and transformers
- `photographs`: the trainings of tokenizers of photographs that are compared with one another
- `pipeline`, `samples`: a model from scratch as a sequence of runs, and what it draws on the way
- `infilling`: the training of the model that fills blanks
- `instructions`: the training of the model of many tasks
- `encoders`, `retrieval`: the training of an encoder for retrieval, and of the model that looks things up
- `policy`, `policy_module`, `reinforcement`, `rewards`: GRPO, a training with a reward, and rewards for scenes
- `own/`: a model of a person's own data, from a folder to `Chameleon`
"""
