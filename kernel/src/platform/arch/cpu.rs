//! What this processor offers. Nothing is used that CPUID does not name.

use raw_cpuid::{CpuId, CpuIdReader, Hypervisor};
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

static FEATURES: LazyLock<Features> = LazyLock::new(|| Features::read(&CpuId::new()));

impl Features {
    fn read<R: CpuIdReader>(cpuid: &CpuId<R>) -> Self {
        let basic = cpuid.get_feature_info();
        let brand = cpuid.get_processor_brand_string();
        let vendor = cpuid.get_vendor_info();
        let name = match (&brand, &vendor) {
            (Some(brand), _) => brand.as_str().trim(),
            (None, Some(vendor)) => vendor.as_str(),
            (None, None) => "unnamed",
        };
        Self {
            name: name.into(),
            x2apic: basic.as_ref().is_some_and(|features| features.has_x2apic()),
            tsc_deadline: basic
                .as_ref()
                .is_some_and(|features| features.has_tsc_deadline()),
            invariant_tsc: cpuid
                .get_advanced_power_mgmt_info()
                .is_some_and(|power| power.has_invariant_tsc()),
            tsc_hz: stated_tsc_hz(cpuid),
        }
    }
}

/// The features of the processor we run on.
pub fn features() -> &'static Features {
    &FEATURES
}

/// Leaf 0x4000_0010 (hypervisors), then leaf 0x15 (crystal and ratio), each where it exists and is filled in. The first is
/// VMware's, and KVM's after it; Microsoft's leaves have those numbers, too, and other things in them.
fn stated_tsc_hz<R: CpuIdReader>(cpuid: &CpuId<R>) -> Option<u64> {
    let hypervisor = cpuid
        .get_hypervisor_info()
        .filter(|info| info.identify() != Hypervisor::HyperV)
        .and_then(|info| info.tsc_frequency())
        .map(|khz| u64::from(khz) * 1000)
        .filter(|&hz| hz > 0);
    let crystal = || cpuid.get_tsc_info().and_then(|info| info.tsc_frequency());
    hypervisor.or_else(crystal).filter(|&hz| hz > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use raw_cpuid::CpuIdResult;

    const INTEL: [u32; 3] = [0x756e_6547, 0x6c65_746e, 0x4965_6e69];
    const KVM: [u32; 3] = [0x4b4d_564b, 0x564b_4d56, 0x4d];
    const MICROSOFT: [u32; 3] = [0x7263_694d, 0x666f_736f, 0x7648_2074];
    const FEATURES: u32 = 1;
    const CRYSTAL: u32 = 0x15;
    const HYPERVISOR: u32 = 0x4000_0000;
    const RATES: u32 = 0x4000_0010;

    /// What a processor with these leaves is found to have: (leaf, [eax, ebx, ecx, edx]). The rest is zero.
    fn read(leaves: &[(u32, [u32; 4])]) -> Features {
        let [ebx, edx, ecx] = [INTEL[0], INTEL[2], INTEL[1]];
        let vendor = (0, [CRYSTAL, ebx, ecx, edx]);
        let leaves = [&[vendor], leaves].concat();
        let cpuid = CpuId::with_cpuid_fn(move |leaf: u32, _: u32| {
            let found = leaves.iter().find(|(number, _)| *number == leaf);
            let [eax, ebx, ecx, edx] = found.map_or([0; 4], |(_, values)| *values);
            CpuIdResult { eax, ebx, ecx, edx }
        });
        Features::read(&cpuid)
    }

    fn under(hypervisor: [u32; 3], last: u32) -> [(u32, [u32; 4]); 2] {
        let [ebx, ecx, edx] = hypervisor;
        [
            (FEATURES, [0, 0, 1 << 31, 0]),
            (HYPERVISOR, [last, ebx, ecx, edx]),
        ]
    }

    #[test]
    fn the_apic_and_its_timer_are_used_as_far_as_they_are_offered() {
        let offered = |ecx| {
            let features = read(&[(FEATURES, [0, 0, ecx, 0])]);
            (features.x2apic, features.tsc_deadline)
        };
        assert_eq!(offered(0), (false, false));
        assert_eq!(offered(1 << 21), (true, false));
        assert_eq!(offered(1 << 24), (false, true));
        assert_eq!(offered(1 << 21 | 1 << 24), (true, true));
    }

    #[test]
    fn the_counter_is_invariant_where_that_is_said() {
        let said = |edx| {
            let last = (0x8000_0000, [0x8000_0008, 0, 0, 0]);
            read(&[last, (0x8000_0007, [0, 0, 0, edx])]).invariant_tsc
        };
        assert!(said(1 << 8));
        assert!(!said(0));
    }

    #[test]
    fn a_hypervisor_states_the_rate_in_kilohertz() {
        let rate = |last, khz| {
            let leaves = [&under(KVM, last)[..], &[(RATES, [khz, 1_000_000, 0, 0])]].concat();
            read(&leaves).tsc_hz
        };
        assert_eq!(rate(RATES, 2_596_130), Some(2_596_130_000));
        assert_eq!(rate(RATES, u32::MAX), Some(4_294_967_295_000));
        assert_eq!(rate(RATES, 0), None);
        // Without `invtsc`, KVM has no such leaf; what is read there is another one.
        assert_eq!(rate(HYPERVISOR + 1, 2_596_130), None);
    }

    #[test]
    fn a_crystal_and_its_ratio_are_a_rate_if_all_three_are_known() {
        let rate = |denominator, numerator, crystal| {
            read(&[(CRYSTAL, [denominator, numerator, crystal, 0])]).tsc_hz
        };
        assert_eq!(rate(2, 216, 24_000_000), Some(2_592_000_000));
        assert_eq!(rate(1, u32::MAX, 1), Some(u64::from(u32::MAX)));
        assert_eq!(rate(2, 216, 0), None);
        assert_eq!(rate(0, 216, 24_000_000), None);
        assert_eq!(rate(2, 0, 24_000_000), None);
        assert_eq!(rate(2, 1, 1), None);
    }

    #[test]
    fn the_crystal_counts_where_the_hypervisor_states_nothing() {
        let crystal = (CRYSTAL, [2, 216, 24_000_000, 0]);
        let rate = |hypervisor, khz| {
            let leaves = [crystal, (RATES, [khz, 0, 0, 0])];
            read(&[&under(hypervisor, RATES)[..], &leaves].concat()).tsc_hz
        };
        assert_eq!(rate(KVM, 2_000_000), Some(2_000_000_000));
        assert_eq!(rate(KVM, 0), Some(2_592_000_000));
        assert_eq!(rate(MICROSOFT, 7), Some(2_592_000_000));
    }
}
