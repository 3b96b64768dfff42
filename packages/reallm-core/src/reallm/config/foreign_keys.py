"""Names that other tools have for our keys: TRL, transformers, axolotl, LLaMA-Factory, verl, OpenRLHF, Megatron, ...

They are no aliases: an error says what to write instead. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping

RENAMED: Mapping[str, str] = {
    "model.path": "base_model base_model_name_or_path checkpoint_dir hf_model_id model model_id model_name "
    "model_name_or_path partial_pretrain pretrained_model_name_or_path pretrained_model_path",
    "model.dtype": "compute_dtype mixed_precision model_dtype precision torch_dtype",
    "model.resize_vocab": "resize_token_embeddings_to_32x resize_vocab_size",
    "model.add_tokens": "added_tokens new_special_tokens special_tokens",
    "model.compile": "torch_compile use_torch_compile",
    "model.lora.rank": "lora_r lora_rank",
    "model.lora.alpha": "lora_alpha",
    "model.lora.dropout": "lora_dropout",
    "model.lora.targets": "lora_target lora_target_linear lora_target_modules target_modules",
    "model.lora.path": "adapter_name_or_path adapter_path lora_adapter_path lora_model_dir peft_path",
    "model.lora.dora": "peft_use_dora use_dora",
    "model.lora.rslora": "peft_use_rslora use_rslora",
    "model.moe_aux_loss_coef": "aux_loss_alpha moe_aux_loss_coeff router_aux_loss_coef",
    "dataset.train_path": "data_files data_path dataset_dir dataset_name dataset_path datasets train_data "
    "train_dataset train_file train_files train_on_dataset",
    "dataset.format": "dataset_format dataset_type datasets_type formatting",
    "dataset.columns": "column_mapping columns_mapping dataset_text_field field_input field_instruction field_messages "
    "field_output message_property_mappings messages_key prompt_key response_key text_field",
    "dataset.mix": "blend data_blend dataset_mixer dataset_mixture interleave_probs mix_strategy",
    "dataset.valid_fraction": "dataset_test_split_size eval_split_ratio split_dataset_ratio test_size val_set_size "
    "val_size valid_ratio validation_split_percentage",
    "dataset.valid_path": "eval_dataset eval_file eval_files test_datasets test_file val_data val_files "
    "validation_data validation_file",
    "dataset.max_seqlen": "block_size cutoff_len max_length max_seq_len max_seq_length model_max_length seq_len "
    "seq_length sequence_len",
    "dataset.train_on": "assistant_only_loss completion_only_loss mask_history only_train_on_completion roles_to_train "
    "train_on_inputs train_on_prompt train_on_responses_only",
    "dataset.chat_template": "chat_template_path jinja_template template",
    "dataset.num_proc": "dataloader_num_workers dataset_num_proc dataset_processes num_workers "
    "preprocessing_num_workers",
    "dataset.cache_dir": "dataset_cache_dir dataset_prepared_path tokenized_path",
    "dataset.valid_bs_n_seqs": "eval_batch_size per_device_eval_batch_size val_batch_size",
    "optimizer.name": "optim optimizer_name optimizer_type",
    "optimizer.lr": "base_lr learning_rate peak_lr",
    "optimizer.weight_decay": "wd",
    "optimizer.beta1": "adam_beta1",
    "optimizer.beta2": "adam_beta2",
    "optimizer.eps": "adam_eps adam_epsilon",
    "optimizer.schedule": "lr_decay_style lr_schedule lr_scheduler lr_scheduler_type",
    "optimizer.warmup_steps": "lr_warmup_iters lr_warmup_steps num_warmup_steps",
    "optimizer.warmup_ratio": "lr_warmup_fraction lr_warmup_steps_ratio warmup_fraction",
    "optimizer.min_lr_ratio": "cosine_min_lr_ratio min_lr min_lr_rate",
    "optimizer.max_grad_norm": "clip_grad clip_grad_norm grad_clip gradient_clip_val gradient_clipping max_norm",
    "parallel.dp": "data_parallel_degree data_parallel_replicate_degree data_parallel_shard_degree data_parallel_size "
    "n_gpus_per_node nproc_per_node num_gpus num_processes",
    "parallel.tp": "tensor_model_parallel_size tensor_parallel_degree tensor_parallel_size tp_size",
    "parallel.pp": "pipeline_model_parallel_size pipeline_parallel_degree pipeline_parallel_size pp_size",
    "parallel.zero": "zero_optimization zero_stage",
    "parallel.timeout_s": "ddp_timeout",
    "epochs": "max_epochs n_epochs num_epochs num_train_epochs total_epochs train_epochs",
    "max_steps": "max_train_steps num_train_steps total_training_steps train_iters",
    "max_tokens_per_microbatch": "max_tokens_per_gpu micro_batch_size micro_batch_size_per_gpu "
    "ppo_max_token_len_per_gpu train_micro_batch_size_per_gpu",
    "eval_every": "eval_freq eval_interval eval_steps run_val_every_n_steps test_freq val_check_interval",
    "eval_max_new_tokens": "eval_max_tokens",
    "save_every": "checkpoint_interval checkpointing_steps save_freq save_interval save_steps",
    "keep_last": "max_ckpt_to_keep save_total_limit",
    "best_metric": "metric_for_best_model",
    "best_mode": "greater_is_better",
    "stop_after_evals_without_gain": "early_stopping_patience",
    "loggers": "log_with report_to trackers",
    "output_dir": "checkpoint_folder default_local_dir logging_dir save_dir",
    "name": "exp_name experiment_name run_name",
    "resume": "auto_resume_from_checkpoints resume_from resume_from_checkpoint resume_mode",
    "seed": "data_seed random_seed train_seed",
    "beta": "dpo_beta pref_beta",
    "teacher.path": "teacher_model teacher_model_name_or_path teacher_model_path",
    "center_coef": "center_rewards_coefficient",
    "desirable_weight": "kto_chosen_weight kto_desirable_weight",
    "loss_type": "dpo_loss_type pref_loss",
    "ref.path": "ref_model ref_model_name_or_path ref_model_path reference_model reference_model_path",
    "ref_logprobs": "precompute_ref_log_probs precompute_ref_logps",
    "rpo_alpha": "cpo_alpha pref_ftx",
    "undesirable_weight": "kto_rejected_weight kto_undesirable_weight",
    "async_steps": "async_level max_head_offpolicyness max_off_policy_steps max_staleness staleness_threshold",
    "drop_zero_std_groups": "algorithm_filter_groups_enable dynamic_sampling filter_groups",
    "entropy_coef": "ent_coef entropy_coeff entropy_loss_coef",
    "epsilon": "clip_eps clip_ratio clip_ratio_low eps_clip_low",
    "epsilon_high": "clip_ratio_high eps_clip_high",
    "eval_num_generations": "num_generations_eval",
    "gen.max_new_tokens": "generate_max_len max_completion_length max_gen_len max_response_length response_length",
    "importance_sampling_clip_max": "behav_imp_weight_cap tis_imp_ratio_cap vllm_importance_sampling_clip_max",
    "keep_rollouts": "log_completions num_completions_to_print rollout_data_dir",
    "num_generations": "group_size n_samples_per_prompt num_samples_per_prompt rollout_n samples_per_prompt",
    "num_minibatches": "num_mini_batches steps_per_generation",
    "overlong_buffer": "overlong_buffer_len",
    "overlong_penalty": "overlong_buffer_penalty_factor overlong_penalty_factor",
    "policy_gradient": "use_policy_gradient",
    "ppo.adaptive_kl_horizon": "kl_horizon",
    "ppo.adaptive_kl_target": "kl_target target_kl",
    "ppo.adv_norm": "normalize_advantage normalize_advantages whiten_advantages",
    "ppo.discount": "gamma",
    "ppo.dual_clip": "clip_ratio_c",
    "ppo.eps_clip": "cliprange",
    "ppo.gae_lambda": "lambd",
    "ppo.kl_ctl": "init_kl_coef kl_coef kl_loss_coef",
    "ppo.max_reward_clip": "cliprange_reward reward_clip_range",
    "ppo.ppo_n_epochs": "noptepochs num_ppo_epochs ppo_epochs",
    "ppo.value_eps_clip": "cliprange_value value_clip vf_clip",
    "critic.path": "critic_pretrain value_model_path",
    "reward.functions": "custom_reward_function reward_fn reward_function reward_funcs reward_functions",
    "reward.path": "reward_model reward_model_name_or_path reward_model_path",
}
"""Our key -> names of the same setting elsewhere."""

EXPLAINED: Mapping[str, str] = {
    "the batch size is dataset.train_bs_n_seqs, the sequences of an optimizer step over all processes; memory follows "
    "from max_tokens_per_microbatch": "batch_size global_batch_size per_device_batch_size per_device_train_batch_size "
    "per_gpu_train_batch_size train_batch_size",
    "it follows from dataset.train_bs_n_seqs and max_tokens_per_microbatch, and results do not depend on it": (
        "accumulate_grad_batches grad_accum_steps gradient_accumulation_steps"
    ),
    "sequences are always packed without padding, and never see each other; there is nothing to turn on": (
        "dynamic_batching eval_packing eval_sample_packing group_by_length neat_packing packed packing "
        "packing_strategy pad_to_sequence_len padding_free sample_packing use_dynamic_bsz use_remove_padding"
    ),
    "write model.dtype=bfloat16": "bf16 pure_bf16",
    "float16 cannot be trained, its gradients underflow; write model.dtype=bfloat16": "fp16",
    "write model.dtype=float32": "fp32 tf32",
    "write model.gradient_checkpointing=full, or selective": (
        "activation_checkpointing activation_checkpointing_mode enable_activation_checkpointing "
        "enable_gradient_checkpointing recompute_granularity use_gradient_checkpointing"
    ),
    "every step is logged": "log_every_n_steps log_freq log_interval logging_first_step logging_steps logging_strategy",
    "with dataset.valid_path, evaluations are made every eval_every steps, or after each epoch if that is null": (
        "do_eval eval_strategy evals_per_epoch evaluation_strategy"
    ),
    "saves are made every save_every steps and every save_every_minutes minutes": "save_strategy saves_per_epoch",
    "best_metric=eval/loss keeps the best checkpoint as checkpoints/best": "load_best_model_at_end",
    "write the decay rates as optimizer.beta1 and optimizer.beta2": "adam_betas betas",
    "training is split by parallel.dp, parallel.tp, parallel.pp and parallel.zero alone": (
        "accelerate deepspeed deepspeed_config distributed_type fsdp fsdp_config fsdp_version strategy"
    ),
    "a sequence is not split between processes; parallel.sequence_parallel with parallel.tp saves memory": (
        "context_parallel_degree context_parallel_size sequence_parallel_degree sequence_parallel_size "
        "ulysses_sequence_parallel_size"
    ),
    "model.lora.rank=16 trains LoRA adapters; other adapters are not available": (
        "adapter finetuning_type lora_config peft peft_config use_lora use_peft"
    ),
    "model.lora.quantize_base=nf4 holds the base model of adapters in 4 bits (QLoRA), with products in model.dtype": (
        "bnb_4bit_compute_dtype bnb_4bit_quant_type load_in_4bit qlora quantization quantization_bit "
        "quantization_config quantization_type use_qlora"
    ),
    "scales of a base model in 4 bits are always quantized too": (
        "bnb_4bit_use_double_quant double_quantization use_bnb_nested_quant"
    ),
    "model.lora.quantize_base=nf4 holds the base model of adapters in 4 bits; 8 bits are not available": "load_in_8bit",
    "attention uses the fastest kernel for packed sequences that torch has for the device": (
        "attention attn_implementation flash_attention flash_attn sdp_attention use_flash_attention "
        "use_flash_attention_2 xformers_attention"
    ),
    "the loss is computed without holding logits in any case": "liger_kernel use_liger use_liger_kernel",
    "code from checkpoints is never run; families that are plugins read them": "trust_remote_code",
    "the tokenizer is the one in model.path": "tokenizer_name tokenizer_name_or_path tokenizer_path",
    "all rows of dataset.train_path are used; max_steps ends a run early": ("max_samples max_train_samples"),
    "rows are shuffled again for each epoch, from seed": "shuffle shuffle_dataset shuffle_merged_datasets",
    "with loggers=[wandb] the project is reallm, unless WANDB_PROJECT is set in the environment": (
        "project project_name wandb_entity wandb_project"
    ),
    "a run folder is never overwritten: choose another name, or continue the run with resume": "overwrite_output_dir",
    "losses that need no reference, loss_type=simpo and loss_type=orpo, load none": "ref_free reference_free",
    "policy and reference never have dropout in preference optimisation and in reinforcement learning": (
        "disable_dropout"
    ),
    "dataset.max_seqlen is the longest sequence, prompt and answer together; of prompts alone it is "
    "dataset.max_prompt_len": "max_prompt_length",
    "baseline and scale_rewards choose how advantages are computed; preset=rloo, for example, sets them": (
        "adv_estimator advantage_estimator"
    ),
    "answers are generated by the engine of reallm itself, with the weights that are trained": (
        "gpu_memory_utilization use_vllm vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_mode "
        "vllm_server_host vllm_server_port vllm_tensor_parallel_size"
    ),
    "on_policy=true trains on the student's own answers, as a lambda of 1 does; on_policy=false on given ones, as 0": (
        "lmbda"
    ),
    "each step answers dataset.train_bs_n_seqs prompts, num_generations times each": "generation_batch_size",
    "all columns of a row reach reward functions": "remove_unused_columns",
    "policy and critic have optimizers of their own; set the critic's rate, critic.optimizer.lr": (
        "value_loss_coef vf_coef"
    ),
    "this command trains; reallm generate and reallm eval use a model": "do_predict do_train stage",
}
"""What to know about a setting of other tools that has no key here -> its names there."""

_KEY_OF = {name: key for key, names in RENAMED.items() for name in names.split()}
_EXPLANATION_OF = {name: sentence for sentence, names in EXPLAINED.items() for name in names.split()}


def our_key(name: str) -> str | None:
    """Our key for a setting of another tool: `data.max_length` -> `dataset.max_seqlen`."""
    return _look_up(_KEY_OF, name)


def explanation(name: str) -> str | None:
    """What to know about a setting of another tool that has no key here: `packing`, `lora.r`, `deepspeed.stage`."""
    return _look_up(_EXPLANATION_OF, name) or _EXPLANATION_OF.get(_parts(name)[0])


def _look_up(table: Mapping[str, str], name: str) -> str | None:
    """The entry of a name, or of its last part: `max_length` of `data.max_length`."""
    parts = _parts(name)
    return table.get("_".join(parts)) or table.get(parts[-1])


def _parts(name: str) -> list[str]:
    return name.lower().replace("-", "_").split(".")
