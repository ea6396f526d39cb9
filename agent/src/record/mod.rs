//! The record: one small object, changed by compare-and-swap alone.
