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
