//! Checks of the project's own files.

mod architecture;
mod documents;
