"""Machinery shared by both IRs: passes and pipelines, dumps, text scanning."""
