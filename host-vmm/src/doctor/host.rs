//! What kind of KVM host this is.

use std::fs;

use serde::Serialize;

/// The class of a host. Numbers of different classes are never compared.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostClass {
    /// VMX or SVM, used by `kvm_intel` or `kvm_amd`, and no hypervisor below.
    Hardware,
    /// The same inside another virtual machine.
    Nested,
    /// The same inside QEMU's TCG: the reference host.
    Reference,
    /// KVM without VMX and SVM: guest kernels are interpreted or deprivileged.
    Software,
    /// No KVM that can be used.
    None,
}

/// The host as far as its own files tell.
#[derive(Clone, Debug, Serialize)]
pub struct Host {
    /// See [`HostClass`].
    pub class: HostClass,
    /// The KVM module that drives the CPU, such as `kvm_amd`.
    pub module: Option<String>,
    /// The CPU's own virtualization, `vmx` or `svm`.
    pub virtualization: Option<&'static str>,
    /// Who runs this machine, where it is a virtual one: CPUID's signature.
    pub hypervisor: Option<String>,
    /// Release of the host's kernel.
    pub kernel: String,
    /// The CPU's name.
    pub cpu: String,
    /// Number of CPUs.
    pub cpus: usize,
}

impl Host {
    /// Looks at this machine; `kvm` says whether `/dev/kvm` can be opened.
    #[must_use]
    pub fn examine(kvm: bool) -> Self {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            cpuinfo
                .lines()
                .find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name))
                .map(|(_, value)| value.trim())
                .unwrap_or_default()
        };
        let flags = field("flags");
        let virtualization = ["vmx", "svm"]
            .into_iter()
            .find(|name| flags.split(' ').any(|flag| flag == *name));
        let hypervisor = flags
            .split(' ')
            .any(|flag| flag == "hypervisor")
            .then(hypervisor_signature);
        let modules = modules();
        let by_hardware = modules
            .iter()
            .find(|name| matches!(name.as_str(), "kvm_intel" | "kvm_amd"));
        let class = match (kvm, virtualization, by_hardware, hypervisor.as_deref()) {
            (false, ..) => HostClass::None,
            (true, Some(_), Some(_), Some("TCGTCGTCGTCG")) => HostClass::Reference,
            (true, Some(_), Some(_), Some(_)) => HostClass::Nested,
            (true, Some(_), Some(_), None) => HostClass::Hardware,
            (true, ..) => HostClass::Software,
        };
        Self {
            class,
            module: by_hardware.or(modules.first()).cloned(),
            virtualization,
            hypervisor,
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .unwrap_or_default()
                .trim()
                .to_owned(),
            cpu: field("model name").to_owned(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
        }
    }

    /// Whether VMCALL and VMMCALL may be tried: on a software KVM they can hang the host's kernel.
    #[must_use]
    pub fn may_vmcall(&self) -> bool {
        matches!(
            self.class,
            HostClass::Hardware | HostClass::Nested | HostClass::Reference
        )
    }
}

/// KVM's modules beside the common one; built-in ones are listed too if they have parameters.
fn modules() -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir("/sys/module")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| name.starts_with("kvm_"))
        .collect();
    names.sort();
    names
}

/// CPUID leaf `0x4000_0000`: who runs this machine.
fn hypervisor_signature() -> String {
    let leaf = std::arch::x86_64::__cpuid(0x4000_0000);
    [leaf.ebx, leaf.ecx, leaf.edx]
        .iter()
        .flat_map(|register| register.to_le_bytes())
        .filter(u8::is_ascii_graphic)
        .map(char::from)
        .collect()
}
