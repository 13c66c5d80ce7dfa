"""People judge what models write: pairs, sheets of questions, and whether a reply is safe."""
