"""How much does a clearer context help a model, and how far should known pixels run ahead?"""
