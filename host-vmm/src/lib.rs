//! The VMM as a library: see `ARCHITECTURE.md`.
