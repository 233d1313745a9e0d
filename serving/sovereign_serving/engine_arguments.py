# SPDX-License-Identifier: Apache-2.0
"""Which of vLLM's arguments a manifest may set in `engineArgs`, and why it may not set the others.

Both lists are for vLLM 0.32: a test in the serving environment compares them with the real dataclasses, so
that an argument which a new version brings is refused until somebody has decided about it.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Set by other fields of the manifest. Two places for one setting would contradict each other.
FROM_THE_MANIFEST = _names(
    """
    all2all_backend api_key data_parallel_address data_parallel_backend data_parallel_external_lb
    data_parallel_hybrid_lb data_parallel_multi_port_external_lb data_parallel_rank data_parallel_rpc_port
    data_parallel_size data_parallel_size_local data_parallel_start_rank disable_log_stats
    distributed_executor_backend enable_eplb enable_expert_parallel enable_lora eplb_config load_format
    lora_modules max_model_len model num_redundant_experts pipeline_parallel_size served_model_name
    tensor_parallel_size tokenizer
    """
)

# Imports a module, runs a file, or takes code that came with the weights.
LOADS_CODE = _names(
    """
    io_processor_plugin logits_processors middleware model_class_overrides
    ray_workers_use_nsight reasoning_parser_plugin scheduler_cls tool_parser_plugin trust_remote_code
    worker_cls worker_extension_cls
    """
)

# Reads or writes a path or an address of the caller's choice, or takes weights from elsewhere than the
# verified folder.
LEAVES_THE_SEAL = _names(
    """
    allowed_local_media_path allowed_media_domains chat_template code_revision collect_detailed_traces
    default_mm_loras download_dir generation_config hf_config_path hf_overrides hf_token log_config_file
    logging_config mm_encoder_fp8_scale_path mm_encoder_fp8_scale_save_margin
    mm_encoder_fp8_scale_save_path model_loader_extra_config model_weights otlp_traces_endpoint
    profiler_config revision spec_method spec_model spec_tokens speculative_config tokenizer_revision
    tool_server weight_transfer_config
    """
)

# Belongs to vLLM's own HTTP server or launcher. Ray Serve listens in its place.
NOT_OUR_SERVER = _names(
    """
    allow_credentials allowed_headers allowed_methods allowed_origins data_parallel_supervisor_port
    disable_access_log_for_endpoints disable_fastapi_docs disable_uvicorn_access_log
    dp_supervisor_probe_failure_threshold dp_supervisor_probe_interval_s dp_supervisor_probe_timeout_s
    elastic_ep_max_dp_size enable_elastic_ep enable_offline_docs enable_request_id_headers
    enable_scale_out enable_ssl_refresh fail_on_environ_validation fingerprint_mode fingerprint_value
    grpc_port h11_max_header_count h11_max_incomplete_event_size host master_addr master_port nnodes
    node_rank port root_path shutdown_timeout ssl_ca_certs ssl_cert_reqs ssl_certfile ssl_ciphers
    ssl_keyfile uds uvicorn_log_level
    """
)

# Writes prompts or answers into logs, or lets a request bring what only the manifest may.
EXPOSES_REQUESTS = _names(
    """
    enable_log_deltas enable_log_outputs enable_log_requests enable_mm_embeds enable_prompt_embeds
    enable_tokenizer_info_endpoint enable_trace_replay log_error_stack trust_request_chat_template
    trust_request_mm_kwargs
    """
)

# Takes a list or a map; `engineArgs` holds single values.
STRUCTURED = _names(
    """
    additional_config attention_config aux_output_config compilation_config cpu_offload_params
    cudagraph_capture_sizes custom_histogram_buckets default_chat_template_kwargs device_ids
    diffusion_config ec_manager_config ec_transfer_config engram_config fault_tolerance_config
    ignore_patterns ir_op_priority kernel_config kv_cache_dtype_skip_layers kv_events_config
    kv_transfer_config limit_mm_per_prompt lora_target_modules mamba_config media_io_kwargs
    mm_processor_kwargs numa_bind_cpus numa_bind_nodes offload_params override_generation_config
    pooler_config pt_load_map_location quantization_config reasoning_config
    sleep_preserve_parameter_names structured_outputs_config watermark_config
    """
)

# Of no use to a model that answers as text and has no adapters.
NO_USE_HERE = _names(
    """
    _api_process_count _api_process_rank anthropic_disabled_thinking_effort cohere_format
    cohere_is_reasoning_model config_format convert enable_fault_tolerance enable_flash_late_interaction
    enable_mixed_moe_lora_format enable_moe_shared_loras enable_tower_connector_lora fully_sharded_loras
    jit_monitor_mode jit_monitor_verbose lora_dtype max_cpu_loras max_lora_cls_labels max_lora_rank
    max_loras runner skip_tokenizer_init specialize_active_lora tokens_only
    """
)

REFUSED: dict[str, str] = {
    **dict.fromkeys(FROM_THE_MANIFEST, "other fields of the manifest set it"),
    **dict.fromkeys(LOADS_CODE, "it would run code that nobody verified"),
    **dict.fromkeys(LEAVES_THE_SEAL, "it would read or write outside the verified model"),
    **dict.fromkeys(NOT_OUR_SERVER, "it belongs to a server that is not started here"),
    **dict.fromkeys(EXPOSES_REQUESTS, "it would expose prompts or trust the client with them"),
    **dict.fromkeys(STRUCTURED, "it takes a list or a map, and values are single scalars"),
    **dict.fromkeys(NO_USE_HERE, "it is of no use here"),
}

# Numbers, switches and names that tune the engine. Nothing here opens a file, a port or a module.
TUNABLE = _names(
    """
    aggregate_engine_logging allow_deprecated_quantization async_scheduling attention_backend block_size
    chat_template_content_format cp_kv_cache_interleave_size cpu_distributed_timeout_seconds
    cpu_offload_gb cudagraph_metrics dbo_decode_token_threshold dbo_prefill_token_threshold
    dcp_comm_backend dcp_kv_cache_interleave_size dcp_q_replicate decode_context_parallel_size
    disable_cascade_attn disable_chunked_mm_input disable_custom_all_reduce
    disable_hybrid_kv_cache_manager disable_nccl_for_dp_synchronization disable_sliding_window
    distributed_timeout_seconds dp_sync_interval dtype enable_auto_tool_choice
    enable_batch_sharded_sampling enable_chunked_prefill enable_cumem_allocator enable_dbo
    enable_ep_weight_filter enable_flashinfer_autotune enable_force_include_usage enable_hc_sp
    enable_layerwise_nvtx_tracing enable_logging_iteration_details enable_mamba_cache_stochastic_rounding
    enable_mamba_shared_prefix_checkpoint enable_mfu_metrics enable_mm_processor_stats
    enable_nccl_comm_suspend enable_per_request_metrics enable_prefix_caching enable_prompt_tokens_details
    enable_return_routed_experts enable_server_load_tracking enable_shm_tensor_arena enable_sleep_mode
    enforce_eager exclude_tools_when_tool_choice_none expert_placement_strategy gdn_prefill_backend
    gpu_memory_utilization interleave_mm_strings kda_decode_backend kda_prefill_backend kv_cache_dtype
    kv_cache_memory_bytes kv_cache_metrics kv_cache_metrics_sample kv_offloading_backend
    kv_offloading_size kv_sharing_fast_prefill language_model_only linear_backend log_level logprobs_mode
    long_prefill_token_threshold long_prefill_token_threshold_adaptive mamba_backend mamba_block_size
    mamba_cache_dtype mamba_cache_mode mamba_cache_philox_rounds mamba_ssm_cache_dtype mamba_ssu_algorithm
    max_cudagraph_capture_size max_log_len max_logprobs max_num_active_seqs max_num_batched_tokens
    max_num_queued_reqs max_num_queued_tokens max_num_scheduled_tokens max_num_seqs
    max_parallel_loading_workers mm_device_do_normalize mm_encoder_attn_backend mm_encoder_attn_dtype
    mm_encoder_only mm_encoder_tp_mode mm_hasher_algorithm mm_ipc_gpu_memory_gb mm_processor_cache_gb
    mm_processor_cache_type mm_processor_device mm_shm_cache_max_object_size_mb mm_tensor_ipc model_impl
    moe_backend num_gpu_blocks_override numa_bind offload_backend offload_group_size offload_num_in_group
    offload_prefetch_step optimization_level per_request_spec_decode_metrics performance_mode
    prefill_context_parallel_size prefill_schedule_interval prefix_cache_retention_interval
    prefix_caching_hash_algo prefix_match_unit quantization reasoning_parser renderer_num_workers
    replayssm_buffer_len response_role return_sampling_mask return_tokens_as_token_ids
    safetensors_load_strategy safetensors_prefetch_block_size safetensors_prefetch_num_threads
    scheduler_reserve_full_isl scheduling_policy seed show_hidden_metrics_for_version skip_mm_profiling
    sleep_mode_offload_cudagraph sparse_indexer_topk_backend sse_keep_alive_interval stream_interval
    swa_bounded_replay tokenizer_mode tool_call_parser tool_strict_level ubatch_size use_fp64_gumbel
    use_replayssm use_tqdm_on_load video_pruning_method video_pruning_rate watermark
    """
)


def objection_to(name: str) -> str | None:
    """Why `engineArgs` may not contain `name`, as the end of a sentence; None when it may."""
    if name in TUNABLE:
        return None
    return REFUSED.get(name, "it is not among the arguments that a manifest may set")
