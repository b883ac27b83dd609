//! What holds for the project's own files.

mod architecture;
mod documents;
