"""The deep unconstrained feature model, many runs as one batched program (Garrod, Keating & Thrampoulidis 2026).

model.py has the chain of matrices and its gradients, initialise.py the starts, descent.py and flow.py training,
measure.py and trajectory.py what is recorded; reduced.py and bases.py the dynamics of singular values alone; codes.py
softmax codes, norm_propagation.py why low rank wins. recipe_*.py are the experiments. DevNotes.md derives all of it.
"""
