"""Finalised loop functions to LLVM IR, objects and a position-independent image."""
