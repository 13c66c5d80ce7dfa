"""What is read of a model while it trains, from outside.

- `watch`: `Monitor`, and the step that it watches
- `attention`: logits and entropy, at three prices
- `outputs`: norms, log-partition, entropy
- `gradients`: shares by modality, updates
- `alarms`: rules, and `DivergenceDetector`
- `default`: `MONITORS`
- `outside`: `OutsideWatch`, for a model and a loop that are not the lab's
"""
