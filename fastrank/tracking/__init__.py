"""Measuring a model while it trains: `watcher` joins the stages once per step.

What is measured (`presets`), when (`schedule`, `budget`), over how many steps (`window`) and processes (`all_ranks`);
what is known from the last steps (`followed`); what a step found (`figures`, `logits`), what it took (`costs`) and what
there is to say about it (`remarks`).
"""
