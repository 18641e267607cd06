"""The embedded default: a small drawn world of home-camera clips and a tiny Qwen2.5-VL that can describe them (miniature/README.md)."""
