"""The unlearning audit: is it gone, is it really gone, and what else went?

A model is measured by one scoring pass and one generation pass per data set, by membership inference and by attacks
that try to bring the knowledge back; the model before unlearning and a model that never saw the forget set are measured
by the same code and set the scale of every verdict.

========================  ==========================================================================================
``settings``, ``data``    what is measured, and on which rows
``checkpoints``           what can be said of a model before it is loaded, and the refusals that follow from it
``sharding``, ``stages``  work split over processes; finished stages on disk, from which a killed audit goes on
``passes``, ``measure``   the stages of one model
``resampling``, ``lines`` the statistics behind a verdict, and the verdicts
``require``               conditions for a pipeline's exit status
``run``, ``result``       the whole audit, and what it leaves in its folder
========================  ==========================================================================================
"""
