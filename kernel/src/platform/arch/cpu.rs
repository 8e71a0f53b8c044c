//! What this processor offers. Nothing is used that CPUID does not name.

use raw_cpuid::CpuId;
use spin::LazyLock;

/// The features the kernel has a use for.
pub struct Features {
    /// The brand string, or else the vendor.
    pub name: alloc::string::String,
    /// The local APIC can be driven by model-specific registers.
    pub x2apic: bool,
    /// The local APIC timer can be set to a time-stamp counter value.
    pub tsc_deadline: bool,
    /// The time-stamp counter runs at one rate, whatever the processor does.
    pub invariant_tsc: bool,
    /// The time-stamp counter's rate, if the processor or the hypervisor states it.
    pub tsc_hz: Option<u64>,
}

static FEATURES: LazyLock<Features> = LazyLock::new(|| {
    let cpuid = CpuId::new();
    let basic = cpuid.get_feature_info();
    let brand = cpuid.get_processor_brand_string();
    let vendor = cpuid.get_vendor_info();
    let name = match (&brand, &vendor) {
        (Some(brand), _) => brand.as_str().trim(),
        (None, Some(vendor)) => vendor.as_str(),
        (None, None) => "unnamed",
    };
    Features {
        name: name.into(),
        x2apic: basic.as_ref().is_some_and(|features| features.has_x2apic()),
        tsc_deadline: basic
            .as_ref()
            .is_some_and(|features| features.has_tsc_deadline()),
        invariant_tsc: cpuid
            .get_advanced_power_mgmt_info()
            .is_some_and(|power| power.has_invariant_tsc()),
        tsc_hz: stated_tsc_hz(&cpuid),
    }
});

/// The features of the processor we run on.
pub fn features() -> &'static Features {
    &FEATURES
}

/// Leaf 0x4000_0010 (hypervisors), then leaf 0x15 (crystal and ratio), each where it exists and is filled in.
fn stated_tsc_hz(cpuid: &CpuId<raw_cpuid::CpuIdReaderNative>) -> Option<u64> {
    let hypervisor = cpuid
        .get_hypervisor_info()
        .and_then(|info| info.tsc_frequency())
        .map(|khz| u64::from(khz) * 1000);
    let crystal = || cpuid.get_tsc_info().and_then(|info| info.tsc_frequency());
    hypervisor.or_else(crystal).filter(|&hz| hz > 0)
}
