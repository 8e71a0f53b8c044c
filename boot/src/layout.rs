//! Where everything goes in the kernel's address space, as its `BootloaderConfig` asks.

use bootloader_api::config::Mapping;

use crate::address_space::{AddressSpace, ENTRY_SIZE, canonical};
use crate::error::Error;
use crate::kernel::Kernel;
use crate::memory_map::PAGE;

/// How much room the parts need that do not depend on the kernel, in bytes.
#[derive(Clone, Copy, Debug)]
pub struct Sizes {
    /// From physical address 0 to the end of the last page that is mapped.
    pub physical_memory: u64,
    /// The boot information.
    pub boot_info: u64,
    /// The pages of the ramdisk, if there is one.
    pub ramdisk: Option<u64>,
}

/// Virtual addresses of the parts of the kernel's address space.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    /// What is added to the kernel's addresses as linked.
    pub bias: u64,
    /// The page below the stack that stays unmapped.
    pub guard_page: u64,
    /// The stack's lowest byte.
    pub stack: u64,
    /// The length of the stack in whole pages.
    pub stack_length: u64,
    /// The boot information.
    pub boot_info: u64,
    /// Physical address 0 in the mapping of physical memory.
    pub physical_memory: Option<u64>,
    /// The entry of the level 4 table that refers to the table itself.
    pub recursive_index: Option<u16>,
    /// The page where the ramdisk begins.
    pub ramdisk: Option<u64>,
}

impl Layout {
    /// Gives each part its address: the fixed ones first, the others where these are not.
    pub fn plan(kernel: &Kernel<'_>, sizes: Sizes) -> Result<Self, Error> {
        let config = &kernel.config;
        let mappings = &config.mappings;

        let stack_length = config
            .kernel_stack_size
            .max(1)
            .checked_next_multiple_of(PAGE)
            .and_then(|length| Some((length, length.checked_add(PAGE)?)));
        let Some((stack_length, stack_room)) = stack_length else {
            return Err(Error::OutOfMemory {
                what: "the kernel's stack",
                bytes: config.kernel_stack_size,
            });
        };
        // From a multiple of the alignment on, so that the bias is one too.
        let link_base = kernel.span().start & !(kernel.alignment() - 1);
        let image_room = kernel.span().end - link_base;

        let image = Part {
            what: "the kernel",
            room: image_room,
            mapping: match (kernel.position_independent, mappings.kernel_base) {
                (true, mapping) => mapping,
                (false, Mapping::Dynamic) => Mapping::FixedAddress(link_base),
                (false, Mapping::FixedAddress(address)) => {
                    return Err(Error::Mapping {
                        what: "the kernel",
                        address,
                        reason: "it is not position-independent, but asks for another base",
                    });
                }
            },
        };
        let stack = Part {
            what: "the kernel's stack",
            room: stack_room,
            mapping: mappings.kernel_stack,
        };
        let boot_info = Part {
            what: "the boot information",
            room: sizes.boot_info,
            mapping: mappings.boot_info,
        };
        let physical_memory = mappings.physical_memory.map(|mapping| Part {
            what: "physical memory",
            room: sizes.physical_memory,
            mapping,
        });
        let recursive = mappings.page_table_recursive.map(|mapping| Part {
            what: "the page tables recursively",
            room: ENTRY_SIZE,
            mapping,
        });
        let ramdisk = sizes.ramdisk.map(|room| Part {
            what: "the ramdisk",
            room,
            mapping: mappings.ramdisk_memory,
        });

        let mut space =
            AddressSpace::new(mappings.dynamic_range_start, mappings.dynamic_range_end)?;
        let optional = [physical_memory, recursive, ramdisk];
        for part in [image, stack, boot_info]
            .iter()
            .chain(optional.iter().flatten())
        {
            part.take_fixed(&mut space)?;
        }

        let image = image.place(&mut space)?;
        let bias = image.wrapping_sub(link_base);
        if bias & (kernel.alignment() - 1) != 0 {
            return Err(Error::Mapping {
                what: "the kernel",
                address: image,
                reason: "its segments need a larger alignment",
            });
        }
        let guard_page = stack.place(&mut space)?;
        Ok(Self {
            bias,
            guard_page,
            stack: guard_page + PAGE,
            stack_length,
            boot_info: boot_info.place(&mut space)?,
            physical_memory: place_optional(physical_memory, &mut space)?,
            recursive_index: place_optional(recursive, &mut space)?
                .map(recursive_index)
                .transpose()?,
            ramdisk: place_optional(ramdisk, &mut space)?,
        })
    }
}

/// A part that needs an address.
#[derive(Clone, Copy)]
struct Part {
    what: &'static str,
    room: u64,
    mapping: Mapping,
}

impl Part {
    fn take_fixed(&self, space: &mut AddressSpace) -> Result<(), Error> {
        match self.mapping {
            Mapping::FixedAddress(address) if !address.is_multiple_of(PAGE) => {
                Err(Error::Mapping {
                    what: self.what,
                    address,
                    reason: "not the start of a page",
                })
            }
            Mapping::FixedAddress(address) => space.take(self.what, address, self.room),
            Mapping::Dynamic => Ok(()),
        }
    }

    fn place(&self, space: &mut AddressSpace) -> Result<u64, Error> {
        match self.mapping {
            Mapping::FixedAddress(address) => Ok(address),
            Mapping::Dynamic => space.find(self.what, self.room),
        }
    }
}

fn place_optional(part: Option<Part>, space: &mut AddressSpace) -> Result<Option<u64>, Error> {
    part.map(|part| part.place(space)).transpose()
}

fn recursive_index(address: u64) -> Result<u16, Error> {
    let what = "the page tables recursively";
    if !address.is_multiple_of(ENTRY_SIZE) {
        return Err(Error::Mapping {
            what,
            address,
            reason: "not a multiple of 512 GiB",
        });
    }
    Ok(canonical(what, address)?.p4_index().into())
}

#[cfg(test)]
mod tests {
    use bootloader_api::BootloaderConfig;
    use elf::abi::{ET_DYN, ET_EXEC};

    use super::*;
    use crate::kernel::tests::elf;

    const BASE: u64 = 0xffff_ffff_8000_0000;
    const UPPER: u64 = 0xffff_8000_0000_0000;
    const SIZES: Sizes = Sizes {
        physical_memory: 8 << 30,
        boot_info: 0x3000,
        ramdisk: Some(0x5000),
    };

    fn plan(e_type: u16, base: u64, config: &BootloaderConfig) -> Result<Layout, Error> {
        let file = elf(e_type, base, config);
        Layout::plan(&Kernel::parse(&file)?, SIZES)
    }

    fn reason(e_type: u16, base: u64, config: &BootloaderConfig) -> &'static str {
        match plan(e_type, base, config).unwrap_err() {
            Error::Mapping { reason, .. } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn dynamic_parts_get_entries_of_their_own() {
        let mut config = BootloaderConfig::new_default();
        config.kernel_stack_size = 5000;
        config.mappings.physical_memory = Some(Mapping::Dynamic);
        config.mappings.page_table_recursive = Some(Mapping::Dynamic);
        assert_eq!(
            plan(ET_EXEC, BASE, &config),
            Ok(Layout {
                bias: 0,
                guard_page: UPPER,
                stack: UPPER + PAGE,
                stack_length: 2 * PAGE,
                boot_info: UPPER + ENTRY_SIZE,
                physical_memory: Some(UPPER + 2 * ENTRY_SIZE),
                recursive_index: Some(259),
                ramdisk: Some(UPPER + 4 * ENTRY_SIZE),
            })
        );
    }

    #[test]
    fn a_position_independent_kernel_is_placed_too() {
        let mut config = BootloaderConfig::new_default();
        // The test file begins one page after its base.
        assert_eq!(plan(ET_DYN, 0, &config).unwrap().bias, UPPER - 0x1000);
        config.mappings.kernel_base = Mapping::FixedAddress(BASE);
        assert_eq!(plan(ET_DYN, 0, &config).unwrap().bias, BASE - 0x1000);
        assert!(reason(ET_EXEC, BASE, &config).contains("not position-independent"));
    }

    #[test]
    fn fixed_parts_stay_and_dynamic_ones_avoid_them() {
        let mut config = BootloaderConfig::new_default();
        config.mappings.kernel_stack = Mapping::FixedAddress(0xf_0000_0000);
        config.mappings.boot_info = Mapping::FixedAddress(UPPER);
        config.mappings.physical_memory = Some(Mapping::FixedAddress(UPPER + ENTRY_SIZE));
        config.mappings.page_table_recursive = Some(Mapping::FixedAddress(UPPER + 3 * ENTRY_SIZE));
        let layout = plan(ET_EXEC, BASE, &config).unwrap();
        assert_eq!(
            (layout.guard_page, layout.stack),
            (0xf_0000_0000, 0xf_0000_1000)
        );
        assert_eq!(layout.boot_info, UPPER);
        assert_eq!(layout.physical_memory, Some(UPPER + ENTRY_SIZE));
        assert_eq!(layout.recursive_index, Some(259));
        assert_eq!(layout.ramdisk, Some(UPPER + 2 * ENTRY_SIZE));
    }

    #[test]
    fn impossible_wishes_are_named() {
        let default = BootloaderConfig::new_default();
        let with = |change: fn(&mut BootloaderConfig)| {
            let mut config = default;
            change(&mut config);
            reason(ET_EXEC, BASE, &config)
        };
        let unaligned = with(|config| config.mappings.boot_info = Mapping::FixedAddress(UPPER + 1));
        assert_eq!(unaligned, "not the start of a page");
        let outside = with(|config| config.mappings.kernel_stack = Mapping::FixedAddress(1 << 47));
        assert_eq!(outside, "not an address of this CPU");
        let recursive = with(|config| {
            config.mappings.page_table_recursive = Some(Mapping::FixedAddress(UPPER + PAGE));
        });
        assert_eq!(recursive, "not a multiple of 512 GiB");
        let none_left = with(|config| config.mappings.dynamic_range_end = Some(0xfff));
        assert_eq!(none_left, "no room in the address space");
        assert_eq!(
            reason(ET_EXEC, 1 << 47, &default),
            "not an address of this CPU"
        );

        let mut config = default;
        config.kernel_stack_size = u64::MAX;
        assert!(matches!(
            plan(ET_EXEC, BASE, &config),
            Err(Error::OutOfMemory { .. })
        ));
    }
}
