"""The fleet's side of Tidegate, one package per stage of the ring:

gateway → store → demand → forecast → sizing → placement → planning → (agents act) → learning; `cycle` joins the stages.
"""
