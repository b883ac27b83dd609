//! What a guest's console output is to those who see it: text for a machine, and what a terminal may be shown. No I/O.

mod filter;
mod text;

pub use filter::ConsoleFilter;
pub use text::{ConsoleText, Piece, hex};
