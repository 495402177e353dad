"""What configs are made of; those in configs/, and those of users.

recipe: the stages with what all of the paper's networks share; learning-rate
curves. imagenet, small_images: whole configs for a kind of data.
"""
