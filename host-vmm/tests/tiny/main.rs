//! Tiny guests on `/dev/kvm`: a few instructions that make calls, and what exactly comes back.
//!
//! The checks themselves are the library's (`src/conformance`), where `paravane abi check` has them,
//! too. A check's name begins with the clause of `SPEC.md` that it tries. No VMX or SVM is needed: the
//! guest's instructions are among those that every KVM knows.

mod rings;

use paravane::conformance::{CHECKS, Failure};

/// Makes a test of each check; the names stand here once more, so that `cargo test pv_call` finds them.
macro_rules! tests {
    ($($name:ident)+) => {
        $(#[test]
        fn $name() {
            run(stringify!($name));
        })+

        #[test]
        fn every_check_is_a_test() {
            let checks: Vec<_> = CHECKS.iter().map(|check| check.name).collect();
            assert_eq!(checks, [$(stringify!($name)),+]);
        }
    };
}

fn run(name: &str) {
    let check = CHECKS.iter().find(|check| check.name == name);
    match check
        .unwrap_or_else(|| panic!("there is no check {name}"))
        .run()
    {
        Ok(()) => {}
        Err(Failure::Skipped(why)) => eprintln!("skipped: {why}"),
        Err(failure) => panic!("{failure}"),
    }
}

tests! {
    pv_conf_1_every_call_of_an_offered_facility_is_carried_out
    pv_disc_1_the_block_is_found
    pv_disc_2_the_last_leaf_is_told
    pv_disc_3_features
    pv_disc_4_boot_info_and_doorbell
    pv_call_1_an_out_to_the_doorbell_is_a_call
    pv_call_7_another_width_is_not_a_call
    pv_call_1_another_port_is_not_a_call
    pv_call_7_strings_and_reads_are_not_calls
    pv_call_2_other_registers_stay
    pv_call_8_arguments_are_taken_in_their_order
    pv_call_3_unused_arguments_are_zero
    pv_call_4_unknown_calls_are_not_supported
    pv_conf_2_a_facility_that_is_off_is_not_supported
    pv_call_10_a_hostile_guest_gets_exact_answers_and_harms_nobody
    pv_call_11_calls_from_cpl3_are_carried_out_where_the_guest_opens_the_port
    pv_call_6_the_host_takes_what_the_registers_of_32_bit_code_hold
    pv_boot_1_boot_info_is_filled
    pv_boot_2_magic
    pv_boot_3_size
    pv_boot_4_shared_pages_are_reserved_memory
    pv_boot_8_a_guest_that_spoils_the_page_harms_itself_only
    pv_boot_9_the_page_stays_as_it_was
    pv_base_1_version
    pv_base_2_facilities
    pv_base_3_probe_finds_what_is_there
    pv_base_4_nop_gives_its_argument_back
    pv_base_5_each_power_action_ends_the_run
    pv_base_6_an_id_has_32_bits
    pv_base_7_unknown_actions_and_reasons_do_nothing
    pv_console_1_write_prints_and_counts
    pv_console_1_write_comes_after_what_is_in_the_ring
    pv_console_9_write_too_long_is_invalid
    pv_console_10_write_outside_memory_is_a_bad_address
    pv_console_2_the_rings_are_where_boot_info_says
    pv_console_3_the_host_trusts_its_own_tail_only
    pv_console_4_impossible_indices_empty_the_ring
    pv_console_4_indices_wrap
    pv_console_5_notify_takes_all_bytes
    pv_console_5_notify_of_an_empty_ring_is_no_error
    pv_console_11_event_vectors_and_processors
    pv_console_12_what_is_published_while_the_host_looks_is_taken
    pv_clock_1_the_frequency_is_in_boot_info
    pv_clock_2_the_pair_is_of_this_run
    pv_clock_3_wall_tells_the_time
    pv_clock_4_only_defined_flags_are_set
    pv_clock_5_the_timers_rate_is_in_boot_info
    pv_clock_7_the_page_has_the_clock_of_boot_info
    pv_clock_8_nobody_writes_when_the_guest_begins
    pv_clock_11_the_generations_agree
    pv_clock_13_event_vectors_and_processors
    pv_timer_1_cpuid_has_the_deadline_mode
    pv_cpuid_1_the_table_is_in_order
    pv_cpuid_2_cpuid_returns_what_the_table_says
    pv_cpuid_3_leaves_with_subleaves_say_so
    pv_rng_1_a_seed_lies_there
    pv_rng_2_fill_writes_what_it_says
    pv_rng_3_every_seed_is_another
    pv_rng_3_every_fill_is_another
    pv_rng_4_too_long_is_invalid
    pv_rng_5_outside_memory_is_a_bad_address
    pv_dev_1_the_table_has_as_many_as_are_counted
    pv_dev_2_an_entry_is_a_virtio_device
    pv_dev_8_what_a_doorbell_is_rung_for_is_served
    pv_dev_3_all_that_works_is_between_start_and_stop
    pv_dev_11_a_stopped_device_starts_anew
    pv_dev_4_a_device_has_a_number
    pv_dev_5_a_start_that_cannot_be_is_invalid
    pv_dev_6_queues_lie_in_memory
    pv_dev_7_a_started_device_is_not_started
    pv_dev_9_a_doorbell_of_nobody_is_silent
    pv_dev_12_a_broken_driver_is_told
    pv_dev_13_a_guest_that_spoils_the_table_deceives_itself
    pv_crash_1_the_record_is_reported
    pv_crash_2_a_wrong_length_is_invalid
    pv_crash_2_a_wrong_record_is_invalid
    pv_crash_3_bad_addresses
    pv_delegate_1_kvms_block_is_where_boot_info_says
    pv_delegate_2_each_facility_has_its_features
    pv_delegate_3_no_other_feature_is_there
    pv_ring_1_transports_and_facility_go_together
    pv_ring_2_a_registered_ring_is_empty
    pv_ring_15_register_takes_what_can_be
    pv_ring_15_no_exitless_ring_without_the_transport
    pv_ring_16_a_second_ring_is_denied_and_the_first_stays
    pv_ring_3_a_ring_lies_in_memory
    pv_ring_4_an_unregistered_ring_is_the_guests
    pv_ring_4_a_ring_can_be_registered_again
    pv_ring_17_what_is_not_registered_cannot_be_unregistered
    pv_ring_5_submit_tells_how_many
    pv_ring_18_only_a_ring_can_be_submitted
    pv_ring_5_a_processor_may_submit_anothers_ring
    pv_ring_23_each_entry_has_its_own_status
    pv_ring_7_a_power_off_ends_the_batch
    pv_ring_8_rings_do_not_nest
    pv_ring_13_entries_that_are_published_too_early_are_taken_as_they_are
    pv_ring_19_an_entry_that_is_changed_late_is_checked_as_it_is_then
    pv_ring_10_the_host_trusts_its_own_tail_only
    pv_ring_11_impossible_indices_empty_the_ring
    pv_ring_22_other_rings_are_not_looked_at
    pv_ring_11_a_hostile_ring_harms_nobody
    pv_smp_1_the_boot_processor_alone_is_on
    pv_smp_2_a_processor_begins_as_it_is_told
    pv_smp_3_bad_ids_and_addresses_are_invalid
    pv_smp_4_what_is_on_is_not_started
    pv_smp_5_page_tables_are_in_memory
    pv_smp_6_a_processor_that_stops_is_off
    pv_smp_7_rings_have_no_processor_to_stop
    pv_smp_8_the_last_processor_stays_on
    pv_smp_9_state_tells_who_is_on
    pv_smp_10_the_host_begins_without_a_wish
    pv_smp_12_event_vectors_and_processors
    pv_smp_15_a_guest_that_spoils_the_page_harms_itself_only
    pv_mem_1_fresh_memory_is_zero
    pv_mem_2_fresh_ranges_are_usable_memory
    pv_mem_4_reported_memory_reads_as_zero
    pv_mem_6_counts_and_sizes_are_checked
    pv_mem_7_addresses_are_checked
    pv_mem_8_memory_that_is_reported_in_use_is_what_the_guest_writes
    pv_mem_9_the_page_is_where_boot_info_says
    pv_mem_11_event_vectors_and_processors
    pv_sec_2_a_neighbour_is_not_written_to
    pv_sec_4_no_range_reaches_beyond_guest_memory
}
