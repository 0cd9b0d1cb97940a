//! What every backend must keep.
