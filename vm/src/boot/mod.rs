//! How a guest starts: its image, what the loader puts into RAM, and the firmware.

mod device_tree;
pub(crate) mod image;
pub(crate) mod loader;
pub(crate) mod sbi;
