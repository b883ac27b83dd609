//! The boot arguments: `/chosen/bootargs` of the device tree.

/// Options that a guest takes from its boot arguments.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BootArguments {
    /// `busy`: compute instead of sleeping, so that the virtual CPU never idles.
    pub busy: bool,
}

impl BootArguments {
    /// Reads a command line: words separated by white space.
    ///
    /// Unknown words are ignored, as Linux does, because one command line may serve several kinds
    /// of guest.
    #[must_use]
    pub fn parse(command_line: &str) -> Self {
        Self { busy: command_line.split_whitespace().any(|word| word == "busy") }
    }
}

#[cfg(test)]
mod tests {
    use super::BootArguments;

    #[test]
    fn busy_is_a_whole_word() {
        for (command_line, busy) in [
            ("", false),
            ("busy", true),
            ("  console=hvc0\tbusy  ", true),
            ("busybox", false),
            ("not-busy", false),
            ("busy=1", false),
        ] {
            assert_eq!(BootArguments::parse(command_line).busy, busy, "{command_line:?}");
        }
    }
}
