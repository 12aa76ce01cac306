"""guardkit in the pipelines that people clean training data with; each module needs its own library.

    guardkit_pipelines.datatrove_filter      GuardFilter, a filter of datatrove
    guardkit_pipelines.curator_stage         GuardStage, a stage of NeMo Curator
    guardkit_pipelines.juicer_ops            guard_filter and guard_mapper, operators of Data-Juicer
    guardkit_pipelines.spark_udf             guard_udf, a pandas UDF for Spark

All of them label with `guardkit.labelling.Labeller`, keep the label beside the document, and never keep what was not
judged where only what is safe is wanted.
"""
