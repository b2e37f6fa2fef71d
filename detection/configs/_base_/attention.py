# What every config here has beside MMDetection's own.
custom_imports = dict(imports=["detection"], allow_failed_imports=False)
runner_type = "AttentionRunner"
